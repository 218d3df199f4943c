"""Helpers of the OpenBezoar study: the paper's ideas as pure functions, and the contract every stage keeps."""
