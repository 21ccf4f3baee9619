"""Make the model of the page "Try it" again: python docs/make_demo_model.py, which takes minutes on a CPU.

The network of the paper is trained on the synthetic mini data set and written to docs/demo/mini.onnx, which is committed:
commit it again after a change of that data set, of the features or of the export.
"""
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the order of sums depends on their number

from acl_paper.data import load_clips
from acl_paper.evaluation import accuracy, evaluate
from acl_paper.export import AudioTimeline, export_onnx
from acl_paper.features import extract_features
from acl_paper.mini import make_mini
from acl_paper.patches import make_split
from acl_paper.training import TrainConfig, fit

MODEL = ROOT / "docs" / "demo" / "mini.onnx"
SETTINGS = TrainConfig(alpha=0.5, subset="all", epochs=40)


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = make_mini(Path(folder) / "mini")
        clips = load_clips(root)
        split = make_split(extract_features(root, Path(folder) / "mini.h5"), clips, SETTINGS)
        run = fit(split, SETTINGS, device="cpu")
    predictions, _ = evaluate(run, split.test, clips.fname, device="cpu")
    MODEL.parent.mkdir(exist_ok=True)
    export_onnx(AudioTimeline(run), MODEL)
    print(f"{MODEL.relative_to(ROOT)}: {MODEL.stat().st_size / 1e6:.1f} MB, accuracy on the test clips {accuracy(predictions)}")


if __name__ == "__main__": main()
