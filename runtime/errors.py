"""The one error tree of the package.

::

    EmoCaliberError
    ├── ConfigError    (ValueError)    a recipe, option or record that makes no sense
    ├── InputError     (ValueError)    an image, label or sample a caller gave that cannot be used
    ├── ResponseError  (ValueError)    a model's text that does not follow the response grammar
    ├── ArtifactError  (ValueError)    a bundle or calibrator that is missing, corrupt or from another version
    ├── BackendError   (RuntimeError)  an engine or provider that did not come up or failed
    ├── DependencyError (ImportError)  a command whose optional packages are not installed
    └── ExportError    (RuntimeError)  a graph that could not be exported or does not match its source

Every message says what was asked, what was found and what to do. Errors of other libraries are translated where they
enter, with ``raise ... from``; the command line prints the message without a traceback and exits with status 1.
"""


class EmoCaliberError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(EmoCaliberError, ValueError):
    """A recipe, option or record that makes no sense."""


class InputError(EmoCaliberError, ValueError):
    """An image, label or sample given by the caller that cannot be used."""


class ResponseError(EmoCaliberError, ValueError):
    """A model response that does not follow the grammar."""


class ArtifactError(EmoCaliberError, ValueError):
    """A bundle, calibrator or prediction file that is missing, corrupt or of another version."""


class BackendError(EmoCaliberError, RuntimeError):
    """An inference engine or provider that did not come up, or failed while running."""


class DependencyError(EmoCaliberError, ImportError):
    """A command whose optional packages are not installed."""


class ExportError(EmoCaliberError, RuntimeError):
    """A model that could not be exported, or whose exported graph does not match it."""
