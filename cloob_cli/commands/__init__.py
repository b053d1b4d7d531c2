"""One module a verb: arguments in, one call down, one result out."""
