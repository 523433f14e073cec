"""The command lines: one module a group of commands."""
