"""All that a serving process loads: artifacts, and the runtime that runs them."""
