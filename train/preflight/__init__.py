"""Before a run costs anything: what would stop it, or make it wrong or slow, one line for each thing."""
