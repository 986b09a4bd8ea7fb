"""The command line: `commands.main`, and what only it needs."""
