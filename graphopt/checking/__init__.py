"""Whether a result agrees with its source: inputs for both, and how their answers compare."""
