"""What the machine does while a run lasts: MLflow's own measures of processor, memory, disk, network and GPUs.

The step of a sample is the time in whole seconds since the run began, so that a resumed run's follow those before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from project.tracking.store import SYSTEM


class MachineMonitor(SystemMetricsMonitor):
    """MLflow's monitor, whose samples go where the run's other metrics go, and not straight to the server.

    Args:
        run_id: of the run.
        tracking_uri: the run's.
        began_ms: when the run began, in milliseconds of the epoch.
        seconds: from one sample to the next.
        log: takes the metrics of a sample and its step.
    """

    def __init__(
        self, run_id: str, tracking_uri: str, began_ms: int, seconds: float, log: Callable[[dict[str, float], int], None]
    ) -> None:
        super().__init__(run_id, sampling_interval=seconds, tracking_uri=tracking_uri)
        self._began_ms, self._log = began_ms, log

    def monitor(self) -> None:
        """Take a sample each interval and a last one at the end; MLflow's own asks the server each time if the run goes on."""
        self.collect_metrics()  # psutil counts a processor's use from the call before
        for monitor in self.monitors:
            monitor.clear_metrics()
        while not self._shutdown_event.wait(self.sampling_interval):
            self._sample()
        self._sample()

    def _sample(self) -> None:
        self.collect_metrics()
        self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Hand a sample on."""
        self._log({SYSTEM + name: value for name, value in metrics.items()}, int(time.time() - self._began_ms / 1000))
        for monitor in self.monitors:
            monitor.clear_metrics()
