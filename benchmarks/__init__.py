"Measurements and the reference ways of doing things they are made against; not part of the package."
