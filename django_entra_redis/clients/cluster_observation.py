"""Instrumentation of cluster clients; see :mod:`.observation`.

redis-py's cluster clients find the nodes of a command themselves. The subclasses here
leave that out: the package's own client does it as it carries out the request.
"""

from types import SimpleNamespace
from typing import Any

from redis import cluster
from redis.asyncio import cluster as asyncio_cluster

from .observation import AsyncPool, CarryOut, Command, Instrumentation, Pool

# Typed as Any: the subclasses leave out parameters that the types demand.
_RedisCluster: Any = cluster.RedisCluster
_AsyncRedisCluster: Any = asyncio_cluster.RedisCluster
_ClusterPipeline: Any = cluster.ClusterPipeline
_AsyncClusterPipeline: Any = asyncio_cluster.ClusterPipeline


class _Call:
    """Base of the clients and pipelines, each of which is made for one request.

    Parameters:
        pool: the pool to the cluster's endpoint.
        carry_out: carries out the request.
    """

    def __init__(self, pool: Pool, carry_out: CarryOut) -> None:
        self.connection_pool = pool
        self.carry_out = carry_out

    def __del__(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_default_node(self) -> Any:
        """Return the cluster's endpoint, as the node that redis-py asks first."""
        options = self.connection_pool.connection_kwargs
        host, port = options.get("host"), options.get("port")
        return SimpleNamespace(
            host=host, port=port, name=f"{host}:{port}", connection_kwargs=options
        )


class _Client(_Call, _RedisCluster):
    def _internal_execute_command(self, *args: Any, **kwargs: Any) -> Any:
        return self.carry_out()


class _AsyncClient(_Call, _AsyncRedisCluster):
    # redis-py 5 reads the first of these attributes, newer versions the second.
    cluster_error_retry_attempts = 0
    retry: Any = SimpleNamespace(get_retries=int)
    command_flags: Any = {}  # noqa: RUF012 - redis-py looks commands up in it
    result_callbacks: Any = {}  # noqa: RUF012 - redis-py looks commands up in it
    _initialize = False

    def __init__(self, pool: Pool, carry_out: CarryOut) -> None:
        _Call.__init__(self, pool, carry_out)
        self._policy_resolver: Any = SimpleNamespace(resolve=_nothing)
        self._policies_callback_mapping: Any = _Identities()

    async def _determine_slot(self, *args: Any, **kwargs: Any) -> Any:
        return None

    async def _determine_nodes(self, *args: Any, **kwargs: Any) -> Any:
        return [self.get_default_node()]

    async def _execute_command(self, *args: Any, **kwargs: Any) -> Any:
        return await self.carry_out()


class _PipelineClient(_AsyncClient):
    # redis-py 5 executes a pipeline this many times; with 0 it would not at all.
    cluster_error_retry_attempts = 1


async def _nothing(*args: Any) -> None:
    """Return None, as a policy resolver that has no policy for a command."""


class _Identities(dict[Any, Any]):
    """Maps every response policy to a function that returns the reply unchanged."""

    def __missing__(self, key: Any) -> Any:
        return lambda reply: reply


class _Pipeline(_Call, _ClusterPipeline):
    def __init__(
        self, pool: Pool, carry_out: CarryOut, commands: list[Command]
    ) -> None:
        _Call.__init__(self, pool, carry_out)
        queued: Any = cluster.PipelineCommand
        self.command_stack = [
            queued(command, {}, index) for index, command in enumerate(commands)
        ]
        self._execution_strategy: Any = SimpleNamespace(
            command_queue=self.command_stack, execute=self.send_cluster_commands
        )

    def send_cluster_commands(self, *args: Any, **kwargs: Any) -> Any:
        return self.carry_out()

    def reset(self) -> None:
        """Do nothing: the pipeline is for one request."""


class _AsyncPipeline(_Call, _AsyncClusterPipeline):
    def __init__(
        self, pool: Pool, carry_out: CarryOut, commands: list[Command]
    ) -> None:
        _Call.__init__(self, pool, carry_out)
        self.command_stack = self._command_stack = [
            asyncio_cluster.PipelineCommand(index, *command)
            for index, command in enumerate(commands)
        ]
        self._client = self.cluster_client = _PipelineClient(pool, carry_out)
        self._execution_strategy: Any = SimpleNamespace(
            command_queue=self._command_stack, execute=self._execute
        )

    async def _execute(self, *args: Any, **kwargs: Any) -> Any:
        return await self.carry_out()

    async def reset(self) -> None:
        """Do nothing: the pipeline is for one request."""


CLUSTER_INSTRUMENTATION = Instrumentation(
    cluster.RedisCluster,
    cluster.ClusterPipeline,
    lambda pool, carry_out: _Client(Pool(pool, carry_out), carry_out),
    lambda pool, carry_out, commands: _Pipeline(
        Pool(pool, carry_out), carry_out, commands
    ),
)
ASYNC_CLUSTER_INSTRUMENTATION = Instrumentation(
    asyncio_cluster.RedisCluster,
    asyncio_cluster.ClusterPipeline,
    lambda pool, carry_out: _AsyncClient(AsyncPool(pool, carry_out), carry_out),
    lambda pool, carry_out, commands: _AsyncPipeline(
        AsyncPool(pool, carry_out), carry_out, commands
    ),
    asynchronous=True,
)
