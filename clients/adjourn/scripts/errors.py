"""Why a script cannot be submitted."""

from adjourn.bundles import BundleInvalid


class ScriptInvalid(BundleInvalid):
    """A script that no worker could import; `reason` says where and why."""
