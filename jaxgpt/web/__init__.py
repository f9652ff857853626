"""The playground: a web server for one user, and its page."""
