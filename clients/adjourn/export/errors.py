"""Why a checkpoint is not exported."""


class ExportRefused(Exception):
    """The file cannot be written; the text says why and what to do."""
