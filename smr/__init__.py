"""Build your own method on these: `import smr`. README has an example."""

from smr.config import Config, configure

from smr.flags import flag
from smr.errors import InputError, NonFiniteLoss
from smr.evaluate import evaluate, predict_batches, sample_losses, test
from smr.gmm_split import SampleLosses, Split, clean_probability, fit_gmm, gmm_split
from smr.methods import METHODS, Method, TrainedEpoch, new_method
from smr.run.inference import Predictor, load
from smr.training import Pair, cross_entropy_epoch, mix, mixmatch_epoch, mixmatch_loss
from smr.training import mixup_epoch, mixup_loss, new_pair, pseudo_labels, refined_labels
