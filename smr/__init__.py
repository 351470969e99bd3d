"""What a method of one's own is built from: `import smr`, then `smr.train` and its parts."""

from smr.divide import Scores, Split, clean_probability, divide, fit_mixture
from smr.errors import InputError, NonFiniteLoss
from smr.method import EpochResult, Pair, co_divide, cross_entropy_epoch, new_pair, sample_losses
from smr.method import score, semi_supervised_epoch, test, train, warm_up_epoch
from smr.recipe import CROSS_ENTROPY, RECALIBRATION, SEMI_SUPERVISED, WARM_UP
from smr.recipe import Recipe, kind_of_epoch, learning_rate
from smr.run.serving import Predictor, load
from smr.steps import cross_entropy_loss, guess, mix, mixmatch_loss, mixup_loss, refine
