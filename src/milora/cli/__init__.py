"""The command line: one file per verb, no logic beyond reading arguments and printing results."""
