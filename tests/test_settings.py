import pickle
import traceback

import pytest

from mqlab.errors import SettingsError
from mqlab.settings import Settings


def test_without_variables_it_is_the_walk_throughs_address() -> None:
    settings = Settings.from_env({})
    assert (settings.host, settings.port, settings.username) == ("127.0.0.1", 5673, "guest")
    assert settings.management_url == "http://127.0.0.1:15673"


def test_ports_come_from_their_variables() -> None:
    settings = Settings.from_env({"MQLAB_AMQP_PORT": "5700", "MQLAB_MANAGEMENT_PORT": "15700"})
    assert (settings.port, settings.management_url) == (5700, "http://127.0.0.1:15700")


def test_amqp_url_wins_over_the_ports() -> None:
    settings = Settings.from_env(
        {"AMQP_URL": "amqp://ann:s%2Fx@example.org:5680/my%2Fvhost", "MQLAB_AMQP_PORT": "1"}
    )
    assert (settings.host, settings.port, settings.virtual_host) == (
        "example.org",
        5680,
        "my/vhost",
    )
    assert (settings.username, settings.password) == ("ann", "s/x")
    assert settings.management_url == "http://example.org:15680"


@pytest.mark.parametrize(
    ("url", "port", "vhost", "management"),
    [
        ("amqp://h", 5672, "/", "http://h:15672"),
        ("amqp://h/", 5672, "/", "http://h:15672"),
        ("amqps://h", 5671, "/", "https://h:15671"),
        ("amqp://[::1]:5673/%2F", 5673, "/", "http://[::1]:15673"),
        ("  amqp://h:5/v \n", 5, "v", "http://h:10005"),
    ],
)
def test_parts_left_out_have_defaults(url: str, port: int, vhost: str, management: str) -> None:
    settings = Settings.from_url(url)
    assert (settings.port, settings.virtual_host, settings.management_url) == (
        port,
        vhost,
        management,
    )


def test_the_management_address_can_be_given() -> None:
    settings = Settings.from_env(
        {"AMQP_URL": "amqp://h", "MQLAB_MANAGEMENT_URL": "https://manage.example.org/"}
    )
    assert settings.management_url == "https://manage.example.org"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://h:15672",
        "amqp://",
        "amqp://h:notaport",
        "amqp://h:99999",
        "amqp://h:0",
        "amqp://h/a/b",
        "amqp://h/v?heartbeat=5",
        "amqp://me:pass#word@h",
        "amqp://[::1",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(SettingsError, match="AMQP_URL=amqp://user:password@host:5672/vhost"):
        Settings.from_url(url)


@pytest.mark.parametrize("text", ["x", "0", "65536", "-1", "5673.0", "²"])
def test_a_port_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingsError, match="MQLAB_AMQP_PORT"):
        Settings.from_env({"MQLAB_AMQP_PORT": text})


def test_row_11_the_password_is_in_no_text_of_it() -> None:
    settings = Settings.from_url("amqp://ann:topsecret@h")
    assert "topsecret" not in f"{settings} {settings!r} {settings.address}"
    assert "topsecret" in settings.url


@pytest.mark.parametrize(
    "url", ["amqp://u:topsecret@h:x", "amqp://u:topsecret@[::1", "amqp://u:top#secret@h"]
)
def test_row_11_a_refused_url_does_not_show_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_url(url)
    shown = f"{caught.value} {caught.value.__cause__} {caught.value.__suppress_context__}"
    assert "secret" not in shown
    assert caught.value.__suppress_context__


def test_the_url_round_trips() -> None:
    settings = Settings.from_url("amqps://a%40b:p%2F%23@h:1/x%2Fy")
    assert Settings.from_url(settings.url) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_parameters_carry_address_heartbeat_name_and_bound() -> None:
    parameters = Settings.from_url("amqps://u:p@h:1/v").parameters(name="me", timeout_s=3)
    assert (parameters.host, parameters.port, parameters.virtual_host) == ("h", 1, "v")
    assert parameters.credentials.username == "u"
    assert (parameters.heartbeat, parameters.stack_timeout) == (15, 3)
    assert parameters.client_properties == {"connection_name": "me"}
    assert parameters.ssl_options.context.check_hostname


def test_row_60_a_login_in_the_management_url_is_kept_and_never_shown() -> None:
    settings = Settings.from_env(
        {
            "AMQP_URL": "amqp://ann:topsecret@h",
            "MQLAB_MANAGEMENT_URL": "https://bob:al%2Fso%40secret@[::1]:15671/prefix/",
        }
    )
    assert settings.management_url == "https://[::1]:15671/prefix"
    assert settings.management_login == ("bob", "al/so@secret")
    assert settings.management_port == 15671
    assert "secret" not in f"{settings} {settings!r} {settings.management_url}"
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_without_a_login_in_the_management_url_there_is_none() -> None:
    assert Settings.from_env({"MQLAB_MANAGEMENT_URL": "http://h:1"}).management_login is None


@pytest.mark.parametrize(
    "url",
    [
        "localhost:15672",
        "amqp://u:topsecret@h",
        "http://",
        "http://u:topsecret@h:x",
        "http://u:top#secret@h",
        "http://u:topsecret@[::1",
        "http://u:topsecret@h:0",
        "http://u:topsecret@h/?a=1",
    ],
)
def test_row_60_a_management_url_that_cannot_be_used_is_refused_without_its_password(
    url: str,
) -> None:
    with pytest.raises(SettingsError, match="MQLAB_MANAGEMENT_URL cannot be used") as caught:
        Settings.from_env({"MQLAB_MANAGEMENT_URL": url})
    assert "http://user:password@host:15672" in caught.value.fix
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_port_of_thousands_of_digits_is_no_port() -> None:
    with pytest.raises(SettingsError):
        Settings.from_env({"MQLAB_AMQP_PORT": "9" * 5_000})
