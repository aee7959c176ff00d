from classic_cnns.sweep.sweep import run_sweep

__all__ = ["run_sweep"]
