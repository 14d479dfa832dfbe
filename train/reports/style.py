"""The look of a report: colours for light and dark, the fonts of the system, Chinese ones too."""

CSS = """
:root { color-scheme: light dark; --ink: #1c2026; --soft: #5b6470; --page: #f5f6f8; --card: #ffffff; --line: #dfe3e8;
  --grid: #e4e7ec; --right: #d5f2e1; --wrong: #fde0dc; --accent: #2f7de1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa4b0; --page: #14171b; --card: #1c2026;
  --line: #323942; --grid: #2e353e; --right: #1d4a33; --wrong: #5a2a27; --accent: #6aa8f7; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5; font-size: 15px; font-family: system-ui,
  -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
  "WenQuanYi Micro Hei", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 15px; margin: 0 0 6px; }
p { margin: 8px 0 12px; }
.soft, th, dt, summary { color: var(--soft); }
nav { margin: 10px 0 0; display: flex; flex-wrap: wrap; gap: 2px 16px; }
nav a { color: var(--accent); text-decoration: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 10px; }
.cards div, figure, .box { background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
.cards div { padding: 10px 14px; } .cards b { display: block; font-size: 18px; font-weight: 600; }
.cards span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); gap: 12px; }
figure { margin: 0; padding: 10px; } figcaption { color: var(--soft); font-size: 13px; padding: 2px 8px; }
svg { display: block; width: 100%; height: auto; } svg text { font-family: inherit !important; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.box { padding: 12px 16px; margin: 0 0 12px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; white-space: nowrap; } tr:last-child > * { border-bottom: 0; }
td { font-variant-numeric: tabular-nums; } td:last-child { overflow-wrap: anywhere; }
.events td:not(:last-child) { white-space: nowrap; max-width: 40vw; overflow: hidden; text-overflow: ellipsis; }
pre { margin: 0; font-size: 13px; font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  "WenQuanYi Micro Hei Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 0 0 12px; } summary { cursor: pointer; margin: 0 0 8px; }
.text { overflow-wrap: anywhere; line-height: 1.8; }
.text i { font-style: normal; opacity: 0.45; }
.text ins { text-decoration: none; background: var(--right); border-radius: 3px; padding: 1px 2px; }
.text del { background: var(--wrong); border-radius: 3px; padding: 1px 2px; }
.text b { font-weight: 600; border-bottom: 1px dotted; margin-left: 2px; }
"""
