"""Trains and evaluates one cell of the grid, or, with -m, many. `python run.py --help` lists the settings."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """The application that Hydra wraps: one composed config in, the test set's rate-distortion cost out."""
    from hyperprior.training.run import run  # here: --help and a misspelt key need not wait for torch

    return run(cfg)


def _guarded_main() -> int:
    """`main`, with what a user can put right said in a line or two. A bug keeps its traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        from hyperprior.training.command_line_errors import explain

        return _fail(explain(error))
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the last checkpoint", 130)
    except Exception as error:
        from hyperprior.training.run import USER_ERRORS

        if not isinstance(error, USER_ERRORS):
            raise
        return _fail(str(error))
    return 0


def _fail(message: str, status: int = 2) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(_guarded_main())
