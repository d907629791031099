"""What is wrong in any publisher or worker, as rules with evidence that every page shares."""
