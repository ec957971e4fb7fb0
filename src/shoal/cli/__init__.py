"""The `shoal` command: one verb per file. `main` dispatches, prints, and turns errors into exit codes."""
