"""Exercises that the live broker judges: ``check``, ``hint`` and ``solution``, a module for a page.

``exercise`` has what a learner meets, ``bench`` what a check works with, ``page_NN`` the checks of
one notebook. A page begins its exercises with ``from mqlab.exercises.page_03 import ex1, ex2``.
"""
