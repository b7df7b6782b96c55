"""The tables of the papers that this project follows, each by one command."""
