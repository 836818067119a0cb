"""The command line: flags, help, config, log, signals and exit codes."""
