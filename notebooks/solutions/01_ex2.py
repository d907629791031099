def make_reader(ask, virtual_host, user, password):
    """Make a user who may read in the virtual host, and neither write nor configure."""
    only_read = {"configure": "^$", "write": "^$", "read": ".*"}
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    ask(f"permissions/{virtual_host}/{user}", "PUT", only_read)
