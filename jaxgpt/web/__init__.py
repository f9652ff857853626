"""The playground: a server for one browser on this machine, and its page."""
