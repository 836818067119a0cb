"""From a command line to a config and to an exit code: flags, help, log, signals."""
