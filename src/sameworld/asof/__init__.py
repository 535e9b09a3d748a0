"""The one meaning of "as of": what a feature's value is, whoever asks and wherever the rows lie."""
