"""Which documents and paragraphs stood in the corpus before, or nearly so."""
