import math


def predict_waits_of_many(clients, duration_s, handlers):
    """Return a list: the waits in seconds, in the order of the answers."""
    rounds = [math.ceil(number / handlers) for number in range(1, clients + 1)]
    return [number * duration_s for number in rounds]
