"""Features: thin modules over the engine, one idea each."""
