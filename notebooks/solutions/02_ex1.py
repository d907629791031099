def predict_waits(clients, duration_s):
    """Return a list: the wait in seconds of client 1, client 2, ... client N."""
    return [number * duration_s for number in range(1, clients + 1)]
