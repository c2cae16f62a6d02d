"""The store on Azure keeps the contract of all stores; and what the service, networks and
credentials may do to it ends in typed errors that tell no secret.
"""

from __future__ import annotations

import functools
import gc
import http.client
import http.server
import logging
import socket
import ssl
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import trustme
from azure.core.credentials import AccessToken, AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import (
    AccountSasPermissions,
    BlobServiceClient,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_container_sas,
)
from hypothesis import given
from hypothesis import strategies as st

from azurite import ACCOUNT_KEY, ACCOUNT_NAME
from backend_contract import GUARD, LEASE, BackendContract, new_id
from remotedict import (
    AccessDeniedError,
    ContainerUnavailableError,
    CredentialsError,
    InvalidNameError,
    RemoteDictError,
    StoreUnavailableError,
)
from remotedict.azure import ENVIRONMENT_VARIABLE, AzureDictionary, parse
from remotedict.backend import (
    PIECE_BYTES,
    BlobNotFound,
    LeaseHeld,
    PreconditionFailed,
    TransientError,
)
from remotedict.backend.azure import AzureBackend
from remotedict.backend.obstore import ObstoreBackend

IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture
def container():
    return f"t{uuid.uuid4().hex}"


@pytest.fixture(params=[AzureBackend, ObstoreBackend])
def kind(request):
    return request.param


@pytest.fixture
def connect(azurite, container, pool, kind):
    """Return what makes backends, and closes them at the end."""
    made = []

    def connect(url=azurite.url, credential=ACCOUNT_KEY, *, name=container, timeout=10, **options):
        made.append(kind(url, name, credential, timeout=timeout, run=pool.map, **options))
        return made[-1]

    yield connect
    for backend in made:
        backend.close()


@pytest.fixture
def backend(connect):
    return connect()


@pytest.fixture
def account(azurite):
    """The account, by the SDK alone."""
    with BlobServiceClient(azurite.url, ACCOUNT_KEY) as account:
        yield account


class TestAzureBackend(BackendContract):
    examples = 8
    rounds = 5

    @pytest.fixture
    def backend(self, backend, account, container):
        self.container = account.get_container_client(container)
        return backend

    @pytest.fixture
    def wait(self):
        return time.sleep

    def stored(self, _):
        if not self.container.exists():
            return {}
        names = self.container.list_blob_names()
        return {name: self.container.download_blob(name).readall() for name in names}


def test_a_listing_goes_on_past_the_end_of_a_page(backend, monkeypatch):
    names = [f"f/{n:02}" for n in range(10)]
    for name in names:
        backend.put(name, b"")
    real = backend._client.list_blobs
    monkeypatch.setattr(
        backend._client, "list_blobs", functools.partial(real, results_per_page=3), raising=True
    )
    assert [blob.name for blob in backend.list("f/")] == names


@pytest.mark.parametrize(("asked", "granted"), [(1, 15), (15, 15), (15.2, 16), (60, 60), (99, 60)])
def test_a_lease_says_for_how_long_the_service_grants_it(backend, asked, granted):
    assert backend.lease("x", asked, lease_id=new_id()).seconds == granted


# -- containers -----------------------------------------------------------------------------


def test_reading_makes_no_container_and_the_first_write_does(backend, account, container):
    with pytest.raises(BlobNotFound):
        backend.get("x")
    assert list(backend.list("")) == []
    backend.delete(["x"])
    assert not account.get_container_client(container).exists()
    backend.put("x", b"data", if_absent=True)
    assert account.get_container_client(container).exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda backend: backend.put("x", b""),
        lambda backend: backend.put("x", [bytes(9_000_000)] * 2),
        lambda backend: backend.lease("x", LEASE, lease_id=new_id()),
        lambda backend: backend.lease("x", LEASE, lease_id=new_id(), force=True),
    ],
    ids=["put", "put in blocks", "lease", "forced lease"],
)
def test_any_write_makes_the_container(backend, account, container, write):
    write(backend)
    assert account.get_container_client(container).get_blob_client("x").exists()


def test_an_etag_is_not_matched_by_a_missing_container(backend):
    with pytest.raises(PreconditionFailed):
        backend.put("x", b"data", if_match='"0x123"')


def test_many_first_writers_make_one_container(connect, pool):
    backends = [connect() for _ in range(8)]
    list(pool.map(lambda n: backends[n].put(f"x{n}", b""), range(8)))
    assert len(list(backends[0].list(""))) == 8


NO_CONTAINERS = [
    "",
    "ab",
    "a" * 64,
    "Upper",
    "a_b",
    "a.b",
    "a b",
    "a/b",
    "-ab",
    "ab-",
    "a--b",
    "..",
]
NO_CONTAINERS += ["größe", "abc\n", "\0abc", "?x=1", "abc#", "\ud800bc", None, 5, b"abc"]


@pytest.mark.parametrize("name", NO_CONTAINERS, ids=repr)
def test_a_name_that_no_container_can_have_is_refused(azurite, name):
    with pytest.raises(InvalidNameError, match="container"):
        AzureDictionary(azurite.connection_string, container_name=name)


def test_a_container_that_is_missing_altogether_is_asked_for(azurite):
    with pytest.raises(InvalidNameError, match="the name of the container is missing"):
        AzureDictionary(azurite.connection_string)


# -- credentials ----------------------------------------------------------------------------


def container_sas(container, permissions, expiry=IN_AN_HOUR):
    return generate_container_sas(
        ACCOUNT_NAME,
        container,
        account_key=ACCOUNT_KEY,
        permission=ContainerSasPermissions.from_string(permissions),
        expiry=expiry,
    )


def account_sas(permissions="rwdlac"):
    return generate_account_sas(
        ACCOUNT_NAME,
        ACCOUNT_KEY,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions.from_string(permissions),
        IN_AN_HOUR,
    )


def test_a_sas_that_may_not_make_containers_works_on_one_that_exists(azurite, account, container):
    account.create_container(container)
    sas = container_sas(container, "racwdl")
    with AzureDictionary(
        container_name=container, account_url=azurite.url, credential=sas, inline_bytes=0
    ) as d:
        d["a", "b"] = 1, bytes(9_000_000)
        del d["a"]
        with d.lock("b"):
            d["b"] = 2
        assert d.copy() == {"b": 2}


def test_a_sas_that_may_not_make_containers_says_so_when_one_is_missing(azurite, container):
    sas = container_sas(container, "racwdl")
    with AzureDictionary(container_name=container, account_url=azurite.url, credential=sas) as d:
        assert len(d) == 0
        with pytest.raises(AccessDeniedError, match=f"{container}.* doesn't exist.*make it"):
            d["a"] = 1


def test_a_sas_of_the_account_makes_the_container(azurite, container):
    with AzureDictionary(
        container_name=container, account_url=azurite.url, credential=account_sas()
    ) as d:
        d["a"] = 1
        assert d["a"] == 1


@pytest.mark.parametrize(
    "form",
    [
        lambda url, sas: {"account_url": url, "credential": sas},
        lambda url, sas: {"account_url": url, "credential": "?" + sas},
        lambda url, sas: {"account_url": f"{url}?{sas}"},
        lambda url, sas: {"account_url": f"{url}/?{sas}"},
        lambda url, sas: {
            "connection_string": f"BlobEndpoint={url};SharedAccessSignature={sas}",
        },
        lambda url, sas: {
            "connection_string": f"BlobEndpoint={url}/;SharedAccessSignature=?{sas};",
        },
    ],
    ids=["token", "token with ?", "in the url", "after a /", "connection string", "with ?"],
)
def test_a_sas_is_taken_in_every_usual_form(azurite, container, form):
    with AzureDictionary(container_name=container, **form(azurite.url, account_sas())) as d:
        d["a"] = 1
        assert d["a"] == 1
        assert "sig" not in repr(d)


def test_a_reader_may_read_and_only_read(azurite, backend, connect, container):
    backend.put("x", b"data")
    reader = connect(azurite.url, container_sas(container, "rl"))
    assert reader.get("x").data == b"data"
    assert [blob.name for blob in reader.list("")] == ["x"]
    for write in (
        lambda: reader.put("x", b"mine"),
        lambda: reader.put("x", [bytes(9_000_000)] * 2),
        lambda: reader.delete(["x"]),
        lambda: reader.lease("x", LEASE, lease_id=new_id()),
        lambda: reader.lease("x", LEASE, lease_id=new_id(), force=True),
    ):
        with pytest.raises(AccessDeniedError, match="check the credential"):
            write()
    assert backend.get("x").data == b"data"


def verbs(backend):
    return {
        "get": lambda: backend.get("x"),
        "get if": lambda: backend.get("x", if_none_match='"0x123"'),
        "range": lambda: backend.get("x", range=(0, 1)),
        "put": lambda: backend.put("x", b"mine"),
        "put if": lambda: backend.put("x", b"mine", if_match='"0x123"'),
        "large put": lambda: backend.put("x", [bytes(9_000_000)] * 2),
        "delete": lambda: backend.delete(["x"]),
        "list": lambda: list(backend.list("x")),
        "lease": lambda: backend.lease("x", LEASE, lease_id=new_id()),
        "force": lambda: backend.lease("x", LEASE, lease_id=new_id(), force=True),
    }


@pytest.mark.parametrize("verb", verbs(None))
def test_a_refused_credential_is_told_by_every_verb(azurite, backend, connect, container, verb):
    backend.put("x", b"data")
    wrong_key = ACCOUNT_KEY[::-1].lstrip("=") + "=="
    for credential in (wrong_key, container_sas(container, "racwdl", LONG_AGO)):
        with pytest.raises(AccessDeniedError, match="check the credential"):
            verbs(connect(azurite.url, credential))[verb]()
    assert backend.get("x").data == b"data"


def test_the_environment_gives_credentials_when_none_are_given(azurite, container, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, azurite.connection_string)
    with AzureDictionary(container_name=container) as d:
        d["a"] = 1
    with AzureDictionary(azurite.connection_string, container_name=container) as d:
        assert d["a"] == 1


def test_what_is_given_counts_more_than_the_environment(azurite, container, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "AccountName=other;AccountKey=bm9uZQ==")
    with AzureDictionary(azurite.connection_string, container_name=container) as d:
        d["a"] = 1
    with AzureDictionary(
        container_name=container, account_url=azurite.url, credential=ACCOUNT_KEY
    ) as d:
        assert d["a"] == 1


@pytest.mark.parametrize("value", [None, ""])
def test_no_credentials_at_all_is_an_error_that_says_where_they_are_sought(value, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, value)
    with pytest.raises(CredentialsError, match=ENVIRONMENT_VARIABLE):
        AzureDictionary(container_name="container")


def test_an_account_without_a_credential_is_an_error_that_asks_for_one(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    for options in (
        {"account_url": "https://account.blob.core.windows.net"},
        {"connection_string": "BlobEndpoint=https://account.blob.core.windows.net"},
        {"connection_string": "AccountName=account"},
    ):
        with pytest.raises(CredentialsError, match=r"credential|AccountKey") as caught:
            AzureDictionary(container_name="container", timeout=1, **options)
        assert "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"connection_string": "AccountName=a", "account_url": "https://a.blob.core.windows.net"},
        {"connection_string": f"AccountName=a;AccountKey={ACCOUNT_KEY}", "credential": "key"},
        {"credential": ACCOUNT_KEY},
        {"account_url": "https://a.blob.core.windows.net", "credential": 5},
        {"account_url": "https://a.blob.core.windows.net", "credential": object()},
        {"account_url": "https://a.blob.core.windows.net", "credential": "not base 64!"},
        {"account_url": "ftp://a.blob.core.windows.net", "credential": ACCOUNT_KEY},
        {"account_url": "https://", "credential": ACCOUNT_KEY},
        {"account_url": "", "credential": ACCOUNT_KEY},
        {"account_url": 5, "credential": ACCOUNT_KEY},
    ],
    ids=range(10),
)
def test_credentials_that_make_no_sense_are_refused_at_once(options, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(CredentialsError) as caught:
        AzureDictionary(container_name="container", timeout=1, **options)
    assert ACCOUNT_KEY not in told(caught.value)


def told(error):
    """Return all that an error tells: text, repr, attributes, chain and traceback."""
    text = [*traceback.format_exception(error)]
    while error is not None:
        text += [str(error), repr(error), repr(error.args), repr(vars(error))]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return unquote("\n".join(text))


RUINED = {
    "nothing": "",
    "a blank": " ",
    "text": "nonsense",
    "only the key": ACCOUNT_KEY,
    "only an =": "=",
    "semicolons": ";;;",
    "no account": f"AccountKey={ACCOUNT_KEY}",
    "quoted": f'"AccountName=a;AccountKey={ACCOUNT_KEY};EndpointSuffix=core.windows.net"',
    "spaces for semicolons": f"AccountName=a AccountKey={ACCOUNT_KEY}",
    "colons": f"AccountName:a;AccountKey:{ACCOUNT_KEY}",
    "no name": f"{ACCOUNT_KEY};AccountName=a",
    "empty key": "AccountName=a;AccountKey=;EndpointSuffix=core.windows.net",
    "cut key": f"AccountName=a;AccountKey={ACCOUNT_KEY[:-3]};EndpointSuffix=core.windows.net",
    "key of other letters": f"AccountName=a;AccountKey=!{ACCOUNT_KEY};EndpointSuffix=a.net",
    "protocol": f"DefaultEndpointsProtocol=ftp;AccountName=a;AccountKey={ACCOUNT_KEY}",
    "endpoint": f"BlobEndpoint=not a url;AccountName=a;AccountKey={ACCOUNT_KEY}",
    "sas without account": f"SharedAccessSignature=sv=1&sig={ACCOUNT_KEY}",
    "a url": f"https://a.blob.core.windows.net/?sig={ACCOUNT_KEY}",
    "bytes": f"AccountName=a;AccountKey={ACCOUNT_KEY}".encode(),
    "not text": [f"AccountName=a;AccountKey={ACCOUNT_KEY}"],
}


@pytest.mark.parametrize("connection_string", RUINED.values(), ids=RUINED)
def test_a_ruined_connection_string_is_refused_and_not_repeated(connection_string, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(CredentialsError) as caught:
        AzureDictionary(connection_string, container_name="container", timeout=1)
    error = caught.value
    while error:
        assert ACCOUNT_KEY[5:25] not in told(error)
        error = error.__context__  # also where a traceback wouldn't show it


@given(st.text(max_size=30), st.integers(0, 200), st.sampled_from(["", ";", "=", " ", "\n", "#"]))
def test_no_connection_string_however_ruined_is_repeated(junk, at, separator):
    good = f"AccountName=a;AccountKey={ACCOUNT_KEY};EndpointSuffix=core.windows.net"
    try:
        tells, _ = parse(good[:at] + separator + junk + separator + good[at:])
    except CredentialsError as exc:
        tells = told(exc)
    assert ACCOUNT_KEY[5:25] not in tells


class Token:
    """Like a credential of azure-identity."""

    def __init__(self):
        self.scopes = []

    def get_token(self, *scopes, **_options):
        self.scopes += scopes
        return AccessToken("the-token", int(time.time()) + 3600)


def test_an_identity_is_asked_for_tokens(secure_service, connect):
    secure_service.answer = answer(404, code="BlobNotFound")
    token = Token()
    backend = connect(f"{secure_service.url}/account", token)
    for _ in range(2):
        with pytest.raises(BlobNotFound):
            backend.get("x")
    assert set(token.scopes) == {"https://storage.azure.com/.default"}
    assert {r.headers["Authorization"] for r in secure_service.requests} == {"Bearer the-token"}


def test_an_identity_that_gives_no_token_says_why(secure_service, connect):
    class Refused:
        def get_token(self, *_scopes, **_options):
            raise ClientAuthenticationError("it was revoked")

    backend = connect(f"{secure_service.url}/account", Refused())
    for verb in (lambda: backend.get("x"), lambda: backend.put("x", b"data")):
        with pytest.raises(AccessDeniedError, match="check the credential"):
            verb()
    assert secure_service.requests == []


@pytest.mark.parametrize("make", [AzureNamedKeyCredential, AzureSasCredential])
def test_a_credential_object_does_as_well_as_its_text(azurite, backend, connect, make):
    backend.put("x", b"data")
    arguments = [account_sas()]
    if make is AzureNamedKeyCredential:
        arguments = [ACCOUNT_NAME, ACCOUNT_KEY]
    assert connect(azurite.url, make(*arguments)).get("x").data == b"data"


def test_an_identity_over_http_is_refused_with_the_reason(azurite, container):
    with pytest.raises(CredentialsError, match="https"):
        AzureDictionary(
            container_name=container, account_url=azurite.url, credential=Token(), timeout=1
        )


# -- long uploads ---------------------------------------------------------------------------


class Lossy:
    """Passes requests on to Azurite, but loses the reply to every `nth` block of an upload."""

    def __init__(self, nth, port):
        self.nth = nth
        self.port = port
        self.lock = threading.Lock()
        self.sent = []
        self.lost = 0

    def __call__(self, request):
        reply = forward(request, self.port)
        query = parse_qs(urlsplit(request.path).query)
        if query.get("comp") == ["block"]:
            with self.lock:
                self.sent += query["blockid"]
                lose = len(self.sent) % self.nth == 0
                self.lost += lose
            if lose:
                return hang_up(request)
        return pass_back(request, reply)


def test_a_lost_block_is_sent_again_and_not_the_whole_upload(azurite, service, connect):
    service.answer = lossy = Lossy(3, azurite.port)
    backend = connect(service.account_url)
    backend.put("y", b"")  # so that the container is there
    sent = [bytes([n]) * (PIECE_BYTES + n) for n in range(7)]
    backend.put("x", iter(sent))
    assert backend.get("x").data == b"".join(sent)
    assert lossy.lost > 1
    assert len(lossy.sent) - lossy.lost == len(set(lossy.sent)) >= 8


def test_a_block_that_never_gets_through_ends_the_upload(azurite, service, connect, monkeypatch):
    monkeypatch.setattr("remotedict.backend.azure.BLOCK_ATTEMPTS", 2)
    monkeypatch.setattr("remotedict.backend.obstore.BLOCK_ATTEMPTS", 2)
    service.answer = Lossy(1, azurite.port)
    backend = connect(service.account_url)
    backend.put("y", b"")
    with pytest.raises(TransientError):
        backend.put("x", [bytes(PIECE_BYTES), bytes(PIECE_BYTES), bytes(PIECE_BYTES)])
    with pytest.raises(BlobNotFound):
        connect().get("x")


# -- what networks and the service may do ---------------------------------------------------


class Service(http.server.ThreadingHTTPServer):
    """A server on this machine that does with each request what `answer` does."""

    scheme = "http"

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests = []
        self.answer = answer(500)

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    @property
    def account_url(self):
        return f"{self.url}/{ACCOUNT_NAME}"

    def handle_error(self, *_):
        """Say nothing: connections break off here on purpose."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _do(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(self)
        self.server.answer(self)

    do_GET = do_PUT = do_DELETE = do_HEAD = _do  # noqa: N815

    def log_message(self, *_):
        """Say nothing."""


def answer(status, body=b"", *, code=None, **headers):
    """Return what answers every request so."""
    if code:
        headers["x-ms-error-code"] = code
        text = f"<Error><Code>{code}</Code><Message>So it is.</Message></Error>"
        body = f"<?xml version='1.0' encoding='utf-8'?>{text}".encode()
        headers["Content-Type"] = "application/xml"

    def act(request):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return act


def hang_up(request):
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


def truncated(request):
    answer(206, b"abc", Content_Length="100", Content_Range="bytes 0-99/100", ETag='"0x1"')(request)
    hang_up(request)


def forward(request, port):
    """Pass a request on to Azurite; return status, headers and body of its reply."""
    parts = urlsplit(request.path)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = {n: v for n, v in request.headers.items() if n.lower() != "host"}
    headers["Host"] = f"127.0.0.1:{port}"
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(request.command, path, request.body or None, headers)
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()
    finally:
        connection.close()


def pass_back(request, reply):
    status, headers, body = reply
    request.send_response(status)
    for name, value in headers.items():
        if name.lower() not in ("transfer-encoding", "connection", "content-length"):
            request.send_header(name, value)
    if status not in (204, 304):
        request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def service():
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        yield service
        service.shutdown()
        thread.join()


@pytest.fixture
def secure_service(service, tmp_path, monkeypatch):
    """The same over TLS, with a certificate that only this test's own authority vouches for."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    service.socket = context.wrap_socket(service.socket, server_side=True)
    service.scheme = "https"
    return service


TROUBLE = {
    "500": answer(500, code="InternalError"),
    "503": answer(503, code="ServerBusy"),
    "502 of a gateway": answer(502, b"<html>Bad gateway"),
    "504 of a gateway": answer(504, b"<html>"),
    "408": answer(408),
    "429": answer(429, b"slow down"),
    "timed out": answer(500, code="OperationTimedOut"),
    "hang up": hang_up,
    "not http": lambda request: (request.wfile.write(b"\0" * 20), hang_up(request)),
    "404 of a proxy": answer(404, b"<html>No such host", Content_Type="text/html"),
    "404 without a word": answer(404),
}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("verb", verbs(None))
def test_trouble_is_transient_for_every_verb(service, connect, trouble, verb):
    service.answer = TROUBLE[trouble]
    with pytest.raises(TransientError):
        verbs(connect(service.account_url))[verb]()


@pytest.mark.parametrize("verb", verbs(None))
def test_a_body_that_breaks_off_is_transient_and_never_half_returned(
    service, connect, verb, monkeypatch
):
    # The SDK's own three tries for a body, which only read, wait between them.
    sleepless = SimpleNamespace(sleep=lambda _: None)
    monkeypatch.setattr("azure.storage.blob._download.time", sleepless)
    service.answer = truncated
    with pytest.raises(TransientError):
        verbs(connect(service.account_url))[verb]()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see below
@pytest.mark.parametrize("verb", verbs(None))
@pytest.mark.parametrize("status", [200, 206, 302, 400, 407, 418])
def test_a_page_of_somebody_else_is_a_typed_error(service, connect, verb, status):
    service.answer = answer(status, b"<html>Please log in", Content_Type="text/html")
    with pytest.raises((TransientError, RemoteDictError)):
        verbs(connect(service.account_url))[verb]()
    gc.collect()  # the SDK leaves the connection of a download that it didn't understand open


@pytest.mark.parametrize("verb", verbs(None))
def test_a_container_being_deleted_is_told_by_every_verb(service, connect, verb):
    service.answer = answer(409, code="ContainerBeingDeleted")
    with pytest.raises(ContainerUnavailableError, match="being deleted"):
        verbs(connect(service.account_url))[verb]()


def test_a_container_being_deleted_is_told_by_the_dictionary(service):
    def deleting(request):
        creation = request.command == "PUT" and "restype=container" in request.path
        told = (409, "ContainerBeingDeleted") if creation else (404, "ContainerNotFound")
        answer(told[0], code=told[1])(request)

    service.answer = deleting
    string = f"AccountName={ACCOUNT_NAME};AccountKey={ACCOUNT_KEY};"
    with AzureDictionary(
        f"{string}BlobEndpoint={service.account_url}", container_name="container"
    ) as d:
        assert len(d) == 0
        with pytest.raises(ContainerUnavailableError, match="being deleted"):
            d["a"] = 1


def test_a_timeout_of_the_service_is_transient(silence, connect):
    with pytest.raises(TransientError):
        connect(silence, timeout=0.2).get("x")


def test_a_lost_reply_to_a_put_is_transient_and_the_put_may_have_been_applied(
    azurite, service, connect, backend
):
    def lose(request):
        forward(request, azurite.port)
        hang_up(request)

    stale = backend.put("x", b"before")
    service.answer = lose
    cut_off = connect(service.account_url)
    with pytest.raises(TransientError):
        cut_off.put("x", b"after", if_match=stale)
    assert backend.get("x").data == b"after"
    assert len(service.requests) == 1  # nobody has tried again behind our back
    with pytest.raises(PreconditionFailed):
        backend.put("x", b"after", if_match=stale)


@pytest.mark.parametrize("condition", [{"if_match": '"0x123"'}, {"if_absent": True}])
def test_a_refused_precondition_is_one_request(azurite, service, connect, backend, condition):
    backend.put("x", b"current")
    service.answer = lambda request: pass_back(request, forward(request, azurite.port))
    counted = connect(service.account_url)
    with pytest.raises(PreconditionFailed):
        counted.put("x", b"mine", **condition)
    assert len(service.requests) == 1


def test_a_lease_whose_reply_was_lost_is_had_by_asking_again(azurite, service, connect, backend):
    def lose_first(request):
        reply = forward(request, azurite.port)
        if len(service.requests) > 1:
            pass_back(request, reply)
        else:
            hang_up(request)

    backend.put("x", b"")
    service.answer = lose_first
    unlucky, mine = connect(service.account_url), new_id()
    with pytest.raises(TransientError):
        unlucky.lease("x", LEASE, lease_id=mine)
    with pytest.raises(LeaseHeld):
        backend.lease("x", LEASE, lease_id=new_id())
    unlucky.lease("x", LEASE, lease_id=mine).renew()


@pytest.fixture
def silence():
    """An account whose server takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/{ACCOUNT_NAME}"


@pytest.fixture
def nobody():
    """An account at a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}/{ACCOUNT_NAME}"


@pytest.mark.parametrize("where", ["nobody", "silence"])
def test_no_network_is_an_error_in_time_and_never_a_missing_key(request, where):
    url, began = request.getfixturevalue(where), time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        AzureDictionary(container_name="abc", account_url=url, credential=ACCOUNT_KEY, timeout=1)
    assert not isinstance(caught.value, KeyError)
    assert time.monotonic() - began < GUARD / 2


def test_a_network_that_fails_later_is_no_missing_key_either(azurite, service, container):
    service.answer = lambda request: pass_back(request, forward(request, azurite.port))
    with AzureDictionary(
        container_name=container,
        account_url=service.account_url,
        credential=ACCOUNT_KEY,
        cache_bytes=0,
    ) as d:
        d["a"] = "b" * 10_000
        patience, d._engine.backend.timeout = d._engine.backend.timeout, 0.5
        working, service.answer = service.answer, hang_up
        for act in (
            lambda: d["missing"],
            lambda: d.get("missing"),
            lambda: "missing" in d,
            lambda: list(d),
            lambda: d.pop("missing", None),
            lambda: d.__setitem__("a", 2),
            lambda: d.lock_item("a", wait=False),
        ):
            with pytest.raises(StoreUnavailableError) as caught:
                act()
            assert not isinstance(caught.value, KeyError)
        assert container in repr(d)  # which never raises
        service.answer, d._engine.backend.timeout = working, patience
        assert d.copy() == {"a": "b" * 10_000}


@pytest.mark.parametrize("where", ["nobody", "silence", "hang up", "403", "500"])
def test_no_error_shows_the_signature_of_a_sas(request, service, connect, where, caplog):
    caplog.set_level(logging.DEBUG, "remotedict")
    sas = container_sas("container", "racwdl")
    secret = parse_qs(sas)["sig"][0]
    if where in ("nobody", "silence"):
        url = request.getfixturevalue(where)
    else:
        url = service.account_url
        service.answer = {"hang up": hang_up, "403": answer(403)}.get(where, answer(500))
    for act in verbs(connect(url, sas, timeout=0.2)).values():
        with pytest.raises((TransientError, AccessDeniedError)) as caught:
            act()
        assert secret not in told(caught.value)
    with pytest.raises(RemoteDictError) as caught:
        AzureDictionary(
            container_name="container", account_url=f"{url}?{sas}", timeout=0.3, author="me"
        )
    assert secret not in told(caught.value)
    ours = [record for record in caplog.records if record.name.startswith("remotedict")]
    assert secret not in unquote(" ".join(record.getMessage() for record in ours))


def test_a_proxy_of_the_environment_is_used(azurite, service, container, monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", service.url)
    service.answer = lambda request: pass_back(request, forward(request, azurite.port))
    string = f"AccountName={ACCOUNT_NAME};AccountKey={ACCOUNT_KEY};"
    # A name that nobody but the proxy can look up.
    with AzureDictionary(
        f"{string}BlobEndpoint=http://azurite.invalid/{ACCOUNT_NAME}", container_name=container
    ) as d:
        d["a"] = 1
        assert d["a"] == 1
    assert {urlsplit(request.path).netloc for request in service.requests} == {"azurite.invalid"}
    monkeypatch.delenv("HTTP_PROXY")
    with AzureDictionary(azurite.connection_string, container_name=container) as d:
        assert d["a"] == 1
