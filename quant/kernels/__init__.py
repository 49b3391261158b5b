"""What is compiled for the processor, and how."""
