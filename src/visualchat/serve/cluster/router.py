"""Routing by content inside Ray Serve: the first choice of a route, or the next one while that has its hands full."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from visualchat.serve.cluster.routes import in_order


class ByContent(RequestRouter):
    """Asks the replicas as `in_order` says of the request's first argument, its route."""

    def initialize_state(self, running: int) -> None:  # type: ignore[override]
        """Ray Serve's hook.

        Args:
            running: So many requests a replica computes at a time.
        """
        self.running = running

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ray Serve's hook: each choice alone, the best first."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # once all of them have refused
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        known = self.replica_queue_len_cache
        loads = {name: known.get(replica.replica_id) or 0 for name, replica in by_name.items()}
        return [[by_name[name]] for name in in_order(pending_request.args[0], loads, self.running)]
