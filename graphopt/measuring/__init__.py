"""How fast a model is, next to other engines and to what the machine could do, and why."""
