"""Train one network on one data set and report its test error.

python src/train.py model=lenet5 data=mnist
python src/train.py -m data.augment=none,shift 'seed=range(3)'
python src/train.py trainer=ddp trainer.devices=2
python src/train.py --help
"""

from classic_cnns.__main__ import main

if __name__ == "__main__":
    main()
