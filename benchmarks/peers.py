"""What remotedict is compared with: one small class for each, all doing the same work.

Small values are pickled with protocol 5, and arrays travel as the bytes of their buffer, without a
pickle around them: that is the least that the raw clients can do. remotedict, old and new, is given
the objects themselves.

The module also runs in the environment of remotedict 0.0.2: it imports a peer's package only when
that peer is made.
"""

from __future__ import annotations

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

SMALL_BYTES = 64 * 1024

THREADS = 16
"""Of clients whose calls block."""

TASKS = 64
"""Under way at once in obstore: fewer are slower here, and more are no faster."""


@dataclass(frozen=True)
class Account:
    """A storage account, here the emulator's, seen through the proxy."""

    name: str
    key: str
    url: str

    @property
    def connection_string(self) -> str:
        """As the portal shows it."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.name};AccountKey={self.key};"
            f"BlobEndpoint={self.url};"
        )


class Peer(Protocol):
    """What is measured, on one container, which is there already."""

    def set(self, key: str, value: Any) -> None:
        """Store a value."""

    def get(self, key: str) -> Any:
        """Return a value; an array may be read-only."""

    def set_many(self, items: dict[str, Any]) -> None:
        """Store many values at once."""

    def get_many(self, keys: list[str]) -> list[Any]:
        """Return many values at once."""

    def keys(self) -> list[str]:
        """Return all keys, as of now."""


def pack(value: Any) -> bytes | memoryview:
    """Return what is uploaded for a value."""
    if isinstance(value, np.ndarray):
        return memoryview(value).cast("B")
    return pickle.dumps(value, 5)


def unpack(data: Any) -> Any:
    """Return the value: what is large is an array here."""
    return np.frombuffer(data) if len(data) > SMALL_BYTES else pickle.loads(data)


class _Threads:
    """Many at once, by threads, for peers whose calls block."""

    set: Callable[[str, Any], None]
    get: Callable[[str], Any]

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS)

    def set_many(self, items: dict[str, Any]) -> None:
        list(self._pool.map(self.set, items.keys(), items.values()))

    def get_many(self, keys: list[str]) -> list[Any]:
        return list(self._pool.map(self.get, keys))


class Sdk(_Threads):
    """azure-storage-blob, as its documentation shows it, with connections for all threads."""

    def __init__(self, account: Account, container: str) -> None:
        import requests
        from azure.core.pipeline.transport import RequestsTransport
        from azure.storage.blob import ContainerClient

        super().__init__()
        session = requests.Session()
        session.mount("http://", requests.adapters.HTTPAdapter(THREADS, THREADS))
        self._client = ContainerClient.from_connection_string(
            account.connection_string, container, transport=RequestsTransport(session=session)
        )

    def set(self, key: str, value: Any) -> None:
        self._client.upload_blob(key, bytes(pack(value)), overwrite=True, max_concurrency=THREADS)

    def get(self, key: str) -> Any:
        return unpack(self._client.download_blob(key, max_concurrency=THREADS).readall())

    def keys(self) -> list[str]:
        return list(self._client.list_blob_names())


class Obstore:
    """obstore; many at once by its coroutines."""

    def __init__(self, account: Account, container: str) -> None:
        import obstore
        from obstore.store import AzureStore

        self._obstore = obstore
        self._store = AzureStore(
            container,
            account_name=account.name,
            account_key=account.key,
            endpoint=account.url,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def set(self, key: str, value: Any) -> None:
        self._obstore.put(self._store, key, pack(value))  # what is large goes in blocks

    def get(self, key: str) -> Any:
        return unpack(self._obstore.get(self._store, key).bytes())

    def set_many(self, items: dict[str, Any]) -> None:
        async def put(item: tuple[str, Any]) -> None:
            await self._obstore.put_async(self._store, item[0], pack(item[1]))

        asyncio.run(_gather(put, items.items()))

    def get_many(self, keys: list[str]) -> list[Any]:
        async def get(key: str) -> Any:
            answer = await self._obstore.get_async(self._store, key)
            return unpack(await answer.bytes_async())

        return asyncio.run(_gather(get, keys))

    def keys(self) -> list[str]:
        return [blob["path"] for page in self._obstore.list(self._store) for blob in page]


async def _gather(fn: Callable[[Any], Awaitable[Any]], items: Iterable[Any]) -> list[Any]:
    limit = asyncio.Semaphore(TASKS)

    async def one(item: Any) -> Any:
        async with limit:
            return await fn(item)

    return await asyncio.gather(*map(one, items))


class Adlfs:
    """fsspec's mapping on adlfs, which fetches and stores many at once by itself."""

    def __init__(self, account: Account, container: str) -> None:
        import fsspec

        self._map = fsspec.get_mapper(
            f"abfs://{container}", connection_string=account.connection_string
        )

    def set(self, key: str, value: Any) -> None:
        self._map[key] = bytes(pack(value))

    def get(self, key: str) -> Any:
        return unpack(self._map[key])

    def set_many(self, items: dict[str, Any]) -> None:
        self._map.setitems({key: bytes(pack(value)) for key, value in items.items()})

    def get_many(self, keys: list[str]) -> list[Any]:
        found = self._map.getitems(keys)
        return [unpack(found[key]) for key in keys]

    def keys(self) -> list[str]:
        self._map.fs.invalidate_cache()
        return list(self._map)


class Minimalkv(_Threads):
    """minimalkv's store on Azure."""

    def __init__(self, account: Account, container: str) -> None:
        from minimalkv.net.azurestore import AzureBlockBlobStore

        super().__init__()
        self._store = AzureBlockBlobStore(
            account.connection_string, container, create_if_missing=False, max_connections=THREADS
        )

    def set(self, key: str, value: Any) -> None:
        self._store.put(key, bytes(pack(value)))

    def get(self, key: str) -> Any:
        return unpack(self._store.get(key))

    def keys(self) -> list[str]:
        return list(self._store.keys())


class Old:
    """remotedict 0.0.2, in an environment of its own."""

    def __init__(self, account: Account, container: str) -> None:
        from remotedict.azure import AzureDictionary

        self._dictionary = AzureDictionary(account.connection_string, container, "bench")

    def set(self, key: str, value: Any) -> None:
        self._dictionary[key] = value

    def get(self, key: str) -> Any:
        return self._dictionary[key]

    def set_many(self, items: dict[str, Any]) -> None:
        self._dictionary[list(items)] = list(items.values())

    def get_many(self, keys: list[str]) -> list[Any]:
        return self._dictionary[keys]

    def keys(self) -> list[str]:
        return list(self._dictionary)

    def insert(self, keys: list[str]) -> None:
        """Make keys without values: enough to list them."""
        self._dictionary.index.insert(keys, ["bench/" + key for key in keys])


class Remotedict:
    """The package of this repository, with its default options."""

    def __init__(self, account: Account, container: str) -> None:
        from remotedict.azure import AzureDictionary

        self._dictionary = AzureDictionary(
            account.connection_string, container, "bench", progress=False
        )

    def set(self, key: str, value: Any) -> None:
        self._dictionary[key] = value

    def get(self, key: str) -> Any:
        return self._dictionary[key]

    def set_many(self, items: dict[str, Any]) -> None:
        self._dictionary.update(items)

    def get_many(self, keys: list[str]) -> list[Any]:
        return self._dictionary[keys]

    def keys(self) -> list[str]:
        return list(self._dictionary)


PEERS: dict[str, type[Peer]] = {
    "remotedict": Remotedict,
    "obstore": Obstore,
    "sdk": Sdk,
    "adlfs": Adlfs,
    "minimalkv": Minimalkv,
    "0.0.2": Old,
}
