"""A saved run scored from Python: python examples/saved_run.py RUN."""

import sys

import armodels

model = armodels.load_model(sys.argv[1])
splits = armodels.load_data("digits")
test = splits.examples("test", model.context)
report = armodels.evaluate(model, test).report(model.spec)
print(f"{report['nats']:.3f} ± {report['nats_ci95']:.3f} nats, {report['bits_per_dim']:.4f} bits")
x, context = test[:5]
print("of each of five:", -model.log_prob(x, context))
