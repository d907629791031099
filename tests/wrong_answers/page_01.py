"""Wrong answers of page 01: users who may too much, too little, or are somebody else."""

from mqlab.exercises.page_01 import ex1, ex2
from tests.wrong_answers import wrong

ALL = {"configure": ".*", "write": ".*", "read": ".*"}
NOTHING = "^$"


@wrong(ex1, "The broker knows nothing of it.", ask="How would the broker know about it?")
def returns_true(*_names):
    """True, and no request"""
    return True


@wrong(ex1, "Your user is there, and has no permissions.", ask="Which request joins the two?")
def forgets_permissions(ask, virtual_host, user, password):
    """No permissions"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})


@wrong(
    ex1,
    "Your user has its permissions in the wrong virtual host.",
    ask="Which virtual host does your path name?",
)
def permits_the_default(ask, virtual_host, user, password):
    """Permissions in /, as in the page's own example"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    ask(f"permissions/%2F/{user}", "PUT", ALL)


@wrong(
    ex1, "Your user is let into other virtual hosts, too.", ask="What can it now do to the others?"
)
def permits_everywhere(ask, virtual_host, user, password):
    """Permissions in every virtual host"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    for name in ("%2F", virtual_host):
        ask(f"permissions/{name}/{user}", "PUT", ALL)


@wrong(
    ex1,
    "Your user is an administrator.",
    ask="What does it need that for? What may an administrator do?",
)
def makes_an_administrator(ask, virtual_host, user, password):
    """An administrator, "so that it works\""""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": "administrator"})
    ask(f"permissions/{virtual_host}/{user}", "PUT", ALL)


@wrong(
    ex1,
    "Your user has another password than the one that was handed over.",
    ask="Who else knows that password?",
)
def uses_a_password_of_its_own(ask, virtual_host, user, _password):
    """The password "guest\""""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": "guest", "tags": ""})
    ask(f"permissions/{virtual_host}/{user}", "PUT", ALL)


@wrong(
    ex1,
    "The virtual host is missing.",
    ask="In which virtual host should your user have permissions?",
)
def forgets_the_virtual_host(ask, _virtual_host, user, password):
    """A user, and no virtual host"""
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})


@wrong(
    ex1, "Your user is let in, and may not write or read there.", ask="Which names does '^$' match?"
)
def permits_configure_only(ask, virtual_host, user, password):
    """Configure only"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    body = {"configure": ".*", "write": NOTHING, "read": NOTHING}
    ask(f"permissions/{virtual_host}/{user}", "PUT", body)


@wrong(
    ex1,
    "You gave permissions before both were there, or named them the wrong way round.",
    ask="Read your path aloud: whose permissions, and where?",
)
def swaps_the_path(ask, virtual_host, user, password):
    """permissions/USER/VIRTUAL_HOST"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    ask(f"permissions/{user}/{virtual_host}", "PUT", ALL)


@wrong(
    ex1,
    "The broker does not understand the body of a request.",
    ask="What does the broker say is missing?",
)
def forgets_the_tags(ask, virtual_host, user, password):
    """A user without tags"""
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password})
    ask(f"permissions/{virtual_host}/{user}", "PUT", ALL)


@wrong(
    ex1,
    "The management page has no such address, or not for this method.",
    ask="What does GET do, and what does PUT do?",
)
def gets_instead_of_putting(ask, virtual_host, _user, _password):
    """The method is forgotten"""
    ask(f"vhosts/{virtual_host}")


@wrong(ex1, "You have swapped the two names.", ask="Which argument is which?")
def swaps_the_names(ask, virtual_host, user, password):
    """The arguments the wrong way round"""
    virtual_host, user = user, virtual_host
    ask(f"vhosts/{virtual_host}", "PUT", {})
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})
    ask(f"permissions/{virtual_host}/{user}", "PUT", ALL)


@wrong(
    ex1,
    "You use names of your own, not those that your function is given.",
    ask="What if two people run your code?",
)
def ignores_the_names(ask, _virtual_host, _user, password):
    """Fixed names"""
    ask("users/lesson_01_fixed", "PUT", {"password": password, "tags": ""})
    return True


def make(ask, virtual_host, user, password, *, tags="", **patterns):
    """Make a user who may read, and what is said otherwise."""
    ask(f"users/{user}", "PUT", {"password": password, "tags": tags})
    body = {"configure": NOTHING, "write": NOTHING, "read": ".*"} | patterns
    ask(f"permissions/{virtual_host}/{user}", "PUT", body)


@wrong(
    ex2,
    "You have swapped write and read.",
    ask="Seen from the client: is taking a message out writing?",
)
def swaps_write_and_read(*arguments):
    """write and read swapped"""
    make(*arguments, write=".*", read=NOTHING)


@wrong(ex2, "Your reader may do everything.", ask="Which of the three does a reader use?")
def permits_everything(*arguments):
    """The permissions of exercise 1"""
    make(*arguments, **ALL)


@wrong(ex2, "Your reader may not read.", ask="Which queue names does your pattern match?")
def permits_nothing(*arguments):
    """No permission at all"""
    make(*arguments, read=NOTHING)


@wrong(
    ex2, "Your reader may still make and delete queues.", ask="Who has declared the queue already?"
)
def leaves_configure_on(*arguments):
    """configure left on, "since a consumer declares its queue\""""
    make(*arguments, configure=".*")


@wrong(ex2, "Your reader may still put messages in.", ask="What would a publish need?")
def leaves_write_on(*arguments):
    """write left on"""
    make(*arguments, write=".*")


@wrong(ex2, "Your reader is not let in.", ask="Where has it any permission at all?")
def only_makes_the_user(ask, _virtual_host, user, password):
    """A user without permissions"""
    ask(f"users/{user}", "PUT", {"password": password, "tags": ""})


@wrong(
    ex2,
    "Your user is an administrator.",
    ask="What are the patterns worth if the user can change them?",
)
def makes_the_reader_an_administrator(*arguments):
    """An administrator who may only read"""
    make(*arguments, tags="administrator")


@wrong(ex2, "The broker knows nothing of it.", ask="How would the broker know about it?")
def says_so_only(*_names):
    """True, and no request"""
    return True
