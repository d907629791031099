def make_my_own(ask, virtual_host, user, password):
    """Make the virtual host, the user, and the user's permissions there."""
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    ask(f"permissions/{virtual_host}/{user}", "PUT", everything)
