"""RedisTier: tables in a Redis Cluster, as NVIDIA HPS's Redis backend lays them out.

A table is `num_partitions` hashes `hps_et{hps_et.<model>.<table>/p<part>}v`; field: the key's 8 bytes, value: float32,
both raw and little endian (HugeCTR 24.06, src/hps/redis_backend.cpp). The braces make Redis place by what is in them,
so a `...}t` of HPS's own times of use lies on the same node; this tier writes none and removes both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, ToolError
from sparsefeed.models.store.table import NAME_PATTERN
from sparsefeed.models.store.tier import (
    Tier,
    batches,
    check_key_bytes,
    check_lookup,
    check_row_bytes,
    check_rows,
    cut,
    lookup_in_batches,
    partition_of,
    tag,
    unknown_table,
)

__all__ = ["RedisTier"]

_HASH = re.compile(rf"hps_et\{{hps_et\.({NAME_PATTERN})\.({NAME_PATTERN})/p([0-9]+)\}}([vt])")
_RETRIES = 1  # enough for a cluster that was restarted; redis-py multiplies what a node that hangs costs by its square
_SAMPLES = 8  # rows of a partition that must belong there; a wrong num_partitions is found out by one that does not


class RedisTier(Tier):
    """Tables in a Redis Cluster (not a plain Redis), shared by any number of machines.

    A lookup is one round trip to each node per 4096 keys. `num_rows` asks for lengths only; `tables` and `remove` scan
    the names of all hashes of the cluster. Redis keeps what its own persistence and replicas keep: rows of a node
    that comes back empty are missing, and counted as such, until they are loaded again.

    Args:
        address: `host:port` of one node, or of several with commas between; any that answers tells of the others.
        num_partitions: hashes per table; must be what the table was written with, and HPS's `num_partitions`.
        password: of Redis's default user; None where it has none.
        timeout_s: how long a node may take to answer. One that refuses is reported at once; one that hangs after
            about twelve times as long at first, then three times.

    Raises:
        BundleError: no node answers, the Redis is not a cluster, or it refuses the password.
        ToolError: redis is not installed.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:7000",
        num_partitions: int = 8,
        password: str | None = None,
        timeout_s: float = 1.0,
    ) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.cluster import ClusterNode, RedisCluster
            from redis.retry import Retry
        except ImportError as error:
            raise ToolError(f"redis cannot be imported ({error}); pip install 'sparsefeed[tiers]'") from error
        if num_partitions < 1:
            raise BundleError(f"num_partitions: got {num_partitions}; must be at least 1")
        self.address = address
        self.num_partitions = num_partitions
        self._row_bytes_by_tag: dict[str, int] = {}
        self._errors_of_redis: Any = redis.exceptions
        self._cluster: Any = None
        self._is_closed = False
        connection = {
            "password": password,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "protocol": 2,  # its replies are flat lists; some of protocol 3 are nested
        }
        # A node's own client would try for seconds; a probe asks once.
        self._probe: Any = lambda host, port: redis.Redis(host, port, retry=Retry(NoBackoff(), 0), **connection)
        nodes = [ClusterNode(host, port) for host, port in map(_host_and_port, address.split(","))]
        with self._reported("connecting"):
            self._cluster = RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), _RETRIES), **connection)

    def write(self, model: str, table: str, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """As `Tier.write`; other clients see each batch of 4096 rows as it arrives."""
        name = tag(model, table)
        check_rows(keys, rows)
        if not len(keys):
            return
        with self._reported(f'writing table "{table}" of model "{model}"'):
            held = self._row_bytes(name, rows.shape[1])
            if held is not None:
                check_row_bytes(model, table, held, rows.shape[1])
            for part in batches(len(keys)):
                fields, values = cut(keys[part]), cut(rows[part])
                pipeline = self._cluster.pipeline()
                for partition, members in self._by_partition(keys[part]):
                    items = [item for i in members for item in (fields[i], values[i])]
                    pipeline.hset(_hash_name(name, partition), items=items)
                pipeline.execute()

    def lookup(self, model: str, table: str, keys: NDArray[np.int64], default: float, out: NDArray[np.float32]) -> int:
        """As `Tier.lookup`; raises BundleError naming the nodes that do not answer."""
        name = tag(model, table)
        check_lookup(keys, out)
        with self._reported(f'reading table "{table}" of model "{model}"'):
            held = self._row_bytes(name, out.shape[1])
            if held is None:
                raise unknown_table(model, table, self.tables(model))
            check_row_bytes(model, table, held, out.shape[1])
            return lookup_in_batches(lambda part: self._get(name, part), model, table, keys, default, out)

    def num_rows(self, model: str, table: str) -> int:
        """As `Tier.num_rows`, by the hashes' lengths."""
        name = tag(model, table)
        with self._reported(f'counting table "{table}" of model "{model}"'):
            if self._row_bytes(name) is None:
                raise unknown_table(model, table, self.tables(model))
            pipeline = self._cluster.pipeline()
            for partition in range(self.num_partitions):
                pipeline.hlen(_hash_name(name, partition))
            return sum(pipeline.execute())

    def tables(self, model: str) -> tuple[str, ...]:
        """As `Tier.tables`, by a scan of the cluster's hashes."""
        with self._reported(f'listing the tables of model "{model}"'):
            return tuple(sorted({table for _, table, kind in self._hashes(model) if kind == "v"}))

    def remove(self, model: str) -> None:
        """As `Tier.remove`; HPS's times of use go too."""
        with self._reported(f'removing model "{model}"'):
            hashes = list(self._hashes(model))
            pipeline = self._cluster.pipeline()
            for name, table, _ in hashes:
                self._row_bytes_by_tag.pop(tag(model, table), None)
                pipeline.unlink(name)
            pipeline.execute()

    def close(self) -> None:
        """As `Tier.close`; the rows stay where they are."""
        if not self._is_closed:
            self._is_closed = True
            self._cluster.close()

    def _get(self, name: str, keys: NDArray[np.int64]) -> Sequence[bytes | None]:
        fields = cut(keys)
        pipeline = self._cluster.pipeline()
        places = list(self._by_partition(keys))
        for partition, members in places:
            pipeline.hmget(_hash_name(name, partition), [fields[i] for i in members])
        values: list[bytes | None] = [None] * len(keys)
        for (_, members), found in zip(places, pipeline.execute(), strict=True):
            for i, value in zip(members, found, strict=True):
                values[i] = value
        return values

    def _by_partition(self, keys: NDArray[np.int64]) -> Iterator[tuple[int, list[int]]]:
        """Partitions that have some of the keys, and which, in the keys' order."""
        partitions = partition_of(keys, self.num_partitions)
        order = np.argsort(partitions, kind="stable")
        ends = np.cumsum(np.bincount(partitions, minlength=self.num_partitions)).tolist()
        for partition, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if stop > start:
                yield partition, order[start:stop].tolist()

    def _row_bytes(self, name: str, dim: int | None = None) -> int | None:
        """Bytes of the table's rows, by a sample; None where there are no rows. Remembered while they fit `dim`."""
        if dim is None or self._row_bytes_by_tag.get(name) != dim * 4:  # another client may have loaded it anew
            pipeline = self._cluster.pipeline()
            for partition in range(self.num_partitions):
                pipeline.hrandfield(_hash_name(name, partition), _SAMPLES, True)
            # Divisors of the true number pass the sample, but leave out the partitions after.
            for partition in range(self.num_partitions, 2 * self.num_partitions):
                pipeline.exists(_hash_name(name, partition))
            replies = pipeline.execute()
            samples, beyond = replies[: self.num_partitions], replies[self.num_partitions :]
            for partition, sample in enumerate(samples):
                check_key_bytes(name, sample[::2])
                keys = np.frombuffer(b"".join(sample[::2]), "<i8")
                if (partition_of(keys, self.num_partitions) != partition).any():
                    beyond.append(1)
            if any(beyond):
                raise BundleError(
                    f"{name}: got num_partitions {self.num_partitions}, but its rows lie in other partitions; give the "
                    "num_partitions it was written with"
                )
            sizes = [len(value) for sample in samples for value in sample[1::2]]
            if not sizes:
                self._row_bytes_by_tag.pop(name, None)
                return None
            self._row_bytes_by_tag[name] = max(set(sizes), key=sizes.count)
        return self._row_bytes_by_tag[name]

    def _hashes(self, model: str) -> Iterator[tuple[bytes, str, str]]:
        """Name, table and kind of a model's hashes."""
        pattern = f"hps_et{{{tag(model, 'x')[:-1]}*"
        for name in self._cluster.scan_iter(match=pattern, count=1000):
            match = _HASH.fullmatch(name.decode("latin1"))
            if match:
                yield name, match[2], match[4]

    @contextmanager
    def _reported(self, doing: str) -> Iterator[None]:
        if self._is_closed:
            raise BundleError(f"Redis Cluster {self.address}, {doing}: this tier is closed; open it again")
        try:
            yield
        except (self._errors_of_redis.RedisError, self._errors_of_redis.RedisClusterException) as error:
            # A pipeline's error repeats the command, thousands of raw keys; what the node said stands at its end.
            said = str(error).rpartition("caused error: ")[2]
            raise BundleError(f"Redis Cluster {self.address}, {doing}: {said}; {self._mend(said)}") from error

    def _mend(self, said: str) -> str:
        lost = self._lost_nodes()
        if lost:
            return f"no answer from {', '.join(lost)}: start it again, or let its replica take over; then ask again"
        if "Cluster mode is not enabled" in said or "cluster support disabled" in said:
            return "a plain Redis has no partitions; give a node of a cluster (cluster-enabled yes)"
        if re.search("[Aa]uthenticat|password|NOAUTH|WRONGPASS", said):
            return "give the cluster's password"
        return "look at CLUSTER INFO and the nodes' logs"

    def _lost_nodes(self) -> list[str]:
        """Nodes known to the cluster that do not answer now."""
        if self._cluster is None:
            known = [_host_and_port(address) for address in self.address.split(",")]
        else:
            known = [(node.host, node.port) for node in self._cluster.get_nodes()]
        lost = []
        for host, port in known:
            node = self._probe(host, port)
            try:
                node.ping()
            except self._errors_of_redis.AuthenticationError:  # of the ConnectionErrors, but an answer
                pass
            except (self._errors_of_redis.ConnectionError, self._errors_of_redis.TimeoutError):
                lost.append(f"{host}:{port}")
            except self._errors_of_redis.RedisError:
                pass
            finally:
                node.close()
        return lost


def _hash_name(name: str, partition: int) -> str:
    return f"hps_et{{{name}/p{partition}}}v"


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.strip().rpartition(":")
    if not host or not port.isdecimal():
        raise BundleError(f'address: got "{address}"; must be host:port, or several with commas between')
    return host, int(port)
