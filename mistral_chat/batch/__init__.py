"""Many prompts from a file: what a line asks, what is told of it, and what was done already."""
