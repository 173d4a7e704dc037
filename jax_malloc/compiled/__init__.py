"""The same game in compiled loops on the host, for searches that replay one program."""
