"""Lines that a run prints before its epochs, and for a tested checkpoint."""

from smr import devices, distributed
from smr.evaluate import test
from smr.flags import shown_flags
from smr.logging.console import Terminal, title


def introduce(run) -> None:
    """Print the first lines of a `Run`'s log."""
    line, config, info = run.record.log.line, run.config, run.loader.info
    height, width = info.image_size
    line(
        f"{title(config)}: {info.train_images} training and {info.test_images} test images of "
        f"{height}x{width}, {len(info.class_names)} classes"
    )
    line("classes: " + ", ".join(info.class_names))
    for note in info.data_notes:
        line(f"data: {note}")
    if info.noise_rate is not None:
        rate = 100 * info.noise_rate
        line(f"training labels: noise rate {rate:.2f} %, sha256 {info.noise_sha256}")
    flags = shown_flags(config, run.given) or "none"
    line(f"flags: {flags}; config.json has the values of all others")
    line(f"device: {devices.hardware(run.device)}; run folder: {run.folder}")
    if (now := distributed.world_size()) > 1:
        statistics = "over all of them" if config.sync_bn else "of each, averaged every epoch"
        line(f"{now} processes share each batch; batch norm statistics {statistics}")
    if run.rows:
        line(f"resumed after epoch {len(run.rows) - 1}")
    before = run.state["world_size"] if run.state else now
    if now != before:
        line(f"note: {before} processes before, {now} now: figures differ within noise")


def print_test(run) -> None:
    """Print the test figures of a `Run`'s checkpoint, beside the accuracy that it stores."""
    epochs = run.state.get("epochs", [run.state["epoch"]])
    for test_set, result in test(run.pair.networks, run.loader, run.config).items():
        stored, figures = "", result.figures
        if test_set == "test" and len(epochs) == 1:
            stored = f" (stored {run.state['accuracy']:.2f} %)"
        Terminal().line(
            f"{run.checkpoint_path}, epoch {' and '.join(map(str, epochs))}: {test_set} accuracy "
            f"{figures['accuracy']:.2f} %{stored}, network 1 {figures['net1/accuracy']:.2f} %, "
            f"network 2 {figures['net2/accuracy']:.2f} %; macro precision "
            f"{figures['precision']:.2f} %, recall {figures['recall']:.2f} %, "
            f"F1 {figures['f1']:.2f} %"
        )
