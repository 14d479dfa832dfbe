"""What a run would cost, before it is begun: memory, arithmetic, communication, days."""
