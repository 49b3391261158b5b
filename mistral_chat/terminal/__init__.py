"""What takes from a terminal or draws on one."""
