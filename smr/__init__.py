"""What a method of one's own is built from: `import smr`, then `smr.train` and its parts."""

from smr.gmm_split import SampleLosses, Split, clean_probability, gmm_split, fit_gmm
from smr.errors import InputError, NonFiniteLoss
from smr.method import EpochResult, Pair, co_divide, new_pair, test, train
from smr.training import cross_entropy_epoch, semi_supervised_epoch, warm_up_epoch
from smr.training import sample_losses, score
from smr.recipe import CROSS_ENTROPY, RECALIBRATION, SEMI_SUPERVISED, WARM_UP
from smr.recipe import Recipe, kind_of_epoch, learning_rate
from smr.run.inference import Predictor, load
from smr.steps import cross_entropy_loss, guess, mix, mixmatch_loss, mixup_loss, refine
