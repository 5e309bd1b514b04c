"""Who and what each record is: patients, labels, databases."""
