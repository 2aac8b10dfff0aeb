"""feed: a request to the bundle that answers its member (docs/contracts/router.md)."""

from sparsefeed.workflows.release.backend import router_model

TritonPythonModel = router_model()
