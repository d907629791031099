"""Exercises that the live broker judges: ``check``, ``hint`` and ``solution``, a module for a page.

``engine`` has what a learner meets and what a check works with, ``rules`` what is wrong in any
publisher or worker, ``page_NN`` the checks of one notebook. A page begins its exercises with
``from mqlab.exercises.page_03 import ex1, ex2``.
"""
